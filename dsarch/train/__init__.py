"""Training: data with a known floor, optimizers, schedules, one trainer."""
