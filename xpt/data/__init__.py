"""The data path: sample order -> shard reader -> DALI -> batches."""
