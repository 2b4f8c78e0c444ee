"""What a person at a terminal meets whatever the command: bars of progress, and errors without a traceback."""
