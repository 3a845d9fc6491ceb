"""What a running pretraining shows of itself: held-out loss, probes, pictures, page, verdict."""
