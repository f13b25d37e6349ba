"""What both processes share: the events and their wire format, hashing, broker clients, and how a process lives."""
