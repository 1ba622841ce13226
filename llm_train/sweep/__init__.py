"""Many runs of one configuration that differ in chosen keys, and what they say together."""
