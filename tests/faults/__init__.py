"""Real clusters that break: what is left afterwards is what an undisturbed sweep has."""
