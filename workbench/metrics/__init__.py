"""Turn records and counters into numbers, intervals and checks; nothing here runs anything."""
