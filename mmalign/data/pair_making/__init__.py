"""What makers of preference data share: resumable stages, selection by scores, rows with their provenance."""
