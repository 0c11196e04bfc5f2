"""The sequencer: reads a pipeline file, decides which stages must run, runs them, and remembers what happened.

`document`   YAML with the place of every value; `settings` is `--set`
`problems`   mistakes with their places; `excerpt` shows the line and a caret, `broken` says why text is no YAML
`spec`       a pipeline file's values, typed; `references` fills in parameters, `units` reads sizes and times
`stages`     what `uses` names: interface, code and command of a stage; `interfaces` reads interface.json strictly
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
`cli`, `arguments`, `work`  the commands; `view`, `live`, `summary` what people see of a run
`graph`      a pipeline drawn; `layout` where boxes and lines go, `picture` the SVG of them
`lineage`, `differences`  what made an artifact, what two runs differ in; `lineage_forms`, `differences_text` say it
`artifacts`  the commands for results: `tags`, `carry` (push, pull), `verify`, `gc` with `inventory`; `named` is
             what their words mean, `runs` the records of runs in the store
`authoring`  `check`, `explain`, `schema`, `completion`: for who writes pipelines; `keys` has each key in words
`cancel`, `records`, `doctor`  stopping, looking back, what this machine can do

`columns`    whether data has the fields that a stage names; `rows` reads it as `prepare-data` does
`translated` what a stage says of its flags, in a pipeline's words; `program` how this program is typed

It imports nothing heavy, and of the stages only prepare-data's reader, where data is checked.
"""

__version__ = "0.1.0"
