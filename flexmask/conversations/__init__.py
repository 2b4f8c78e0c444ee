"""Records -> conversations: the formats that people have, read into one form that every later stage starts from."""
