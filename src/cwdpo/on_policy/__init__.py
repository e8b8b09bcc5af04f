"""On-policy negatives: sampled from the policy while stage 2 trains, verified, measured and mixed into batches."""
