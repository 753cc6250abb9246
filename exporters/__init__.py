"""What is built for a platform: one module per target; the packages inside write one runtime's format each."""
