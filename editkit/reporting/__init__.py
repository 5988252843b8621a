"""Tables made from logged runs only."""
