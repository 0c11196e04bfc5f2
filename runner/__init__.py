"""The sequencer: reads a pipeline file, decides which stages must run, runs them, and remembers what happened.

`document`   YAML with the place of every value; `--set`
`spec`       a pipeline file's values, typed; every mistake in it with its place
`stages`     what `uses` names: interface, code and command of a stage
`pipeline`   a spec checked against its stages and inputs: all that planning needs
`plan`       decides, purely: run, reuse or wait, and why
`store`      committed results: look one up, commit one
`history`    what ran when, and which attempts are under way (SQLite)
`execute`    acts on the decisions: one scheduler, any executor
`launch`     starts what must be made, and sees that it is made once
`lease`      who makes a stage run, among all runners that share a store
`attempts`   one attempt of a stage: prepared, and what it wrote checked
`ending`     what becomes of an attempt that has ended; `retry` when it is tried again, `patience` for how long
`progress`   how far a run has come, told to view and history
`executors`  how a stage is started somewhere, watched and stopped; `credentials` what a container gets for stores
`cli`, `arguments`, `work`  the commands; `view`, `summary`, `graph` what people see
`artifacts`  the commands for results: `tags`, `carry` (push, pull), `check` (verify), `gc` with `inventory`; `named` is
             what their words mean, `runs` the records of runs in the store
`cancel`, `records`, `doctor`  stopping, looking back, what this machine can do

It imports no stage and nothing heavy.
"""

__version__ = "0.1.0"
