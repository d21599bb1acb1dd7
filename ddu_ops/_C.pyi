"""The compiled part: importing it registers the operators."""
