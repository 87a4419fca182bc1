"""Many processes: how a launch is recognised, networks sharded, sharded state saved, and runs exported."""
