"""What every training run is made of: engine, ranks, checkpoints, schedule, logging, interruptions."""
