"""What every bundle holds for the person with the device: a self-test, and a page that says what to do."""
