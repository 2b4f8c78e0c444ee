"""What surrounds a training: its folder, the Trainer's arguments, signals, and all that it prints and logs."""
