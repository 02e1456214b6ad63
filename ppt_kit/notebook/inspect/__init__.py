"""The inspector: what is in a dataset, what a policy makes of it, how an evaluated episode went.

`door` is `ppt.inspect`; `episodes` are those of a dataset, `evaluated` those of an evaluation, with the same face;
`packing` makes bytes of their frames, `augmented` and `predicted` show what training and a policy make of them, and
`widget` answers what the browser asks for. Drawing is the browser's: the parts of static/ are one ES module, in their
order.
"""
