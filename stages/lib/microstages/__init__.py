"""What the stages share: artifacts at URIs, and the contract that every stage keeps.

`artifact`  immutable, verified folders of files
`manifest`  what `artifact.json` says of one, and `provenance` of what made it
`storage`   the few operations on URIs that artifacts need; local paths without fsspec
`digest`    sha256 of files and trees, remembered as long as the files provably did not change
`identity`  code identity and fingerprint: what a stage run is
`interface` what a stage takes and gives, as data
`stage`     one typed function becomes a command line program that keeps the contract
`machine`   the cores and memory that a stage may use
`reporting` events on stdout, words and progress on stderr
"""

__version__ = "0.1.0"
