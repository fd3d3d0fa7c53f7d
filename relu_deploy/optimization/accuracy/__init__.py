"""What a variant costs in accuracy: calibration, evaluation data, the gate, confidence, sensitivity."""
