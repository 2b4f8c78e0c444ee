"""One reader a file: how the messages of a format, or the turns of a record, become messages.

A format of messages has `NAME`, `fits(message)`, whether a message can only be of it, and `pieces(message, where)`: the
message as one or several pieces (`flexmask.conversations.messages.join_pieces`), whose assistant text may still hold
thinking and calls, and texts for the notes of the conversation. A format of calls in the text of an answer has `NAME`,
`calls(text, where)`, the text in front of them and the calls, and perhaps `results(message)`. A format of records has
`NAME`, `fits(record)`, `keys(record)`, those of the record that it reads, and `turns(record, name)`: its messages, in
any format of messages.
"""
