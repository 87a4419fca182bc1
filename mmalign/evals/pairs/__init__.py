"""Preference data made of rewards: sample candidates, score them, select pairs and rankings."""
