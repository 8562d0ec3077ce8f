"""Services that run beside the runs: due timers and deadlines, dead workers. One loop each."""
