"""Preference pairs made by models: own answers, claims, self-judgement, several images, bias."""
