"""Values that settings choose from, apart from the modules that act on them, so that settings are checked lightly."""

PROFILES = ("fast", "faithful")  # of extraction
PII_KINDS = ("email", "ip", "phone", "iban", "card")
