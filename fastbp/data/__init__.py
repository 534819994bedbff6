"""User data: arrays that are checked, and the order in which an epoch takes its samples."""
