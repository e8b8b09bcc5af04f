"""What a trained model says, how sure it is, and how far it moved."""
