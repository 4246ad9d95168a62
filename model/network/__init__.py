"""The transformer and its parts: attention, rotary positions, norm, and the loss after its head."""
