"""What is recorded: events, commands, turns, the life of a run, and how replay matches them."""
