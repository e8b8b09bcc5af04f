"""What preference pairs give away without a look at the image: clues in the words, and models that are blind."""
