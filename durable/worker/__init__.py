"""The worker: claims runs, drives them, commits their turns, performs their activities."""
