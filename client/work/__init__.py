"""What a run does with a site's records: training, evaluation, statistics."""
