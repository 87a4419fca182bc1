"""What evaluations of video need: models under evaluation, what looks at clips, the measures they give."""
