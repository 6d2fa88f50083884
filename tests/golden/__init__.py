"""Golden curves: 200 steps of every method on every form of task, recorded in float64 on a CPU."""
