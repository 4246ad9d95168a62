"""What every package may use: errors, files, hashes, progress and settings. Imports nothing of the project."""
