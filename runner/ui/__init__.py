"""`runner ui`: the history of a store in a browser. It reads and serves; it changes nothing."""
