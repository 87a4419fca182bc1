"""Networks that listen for metrics of sound: PANNs' Cnn14, VGGish, CLAP; what they hear and how."""
