"""What is written down of a training run: tensors as rows of a ring of snapshots."""
