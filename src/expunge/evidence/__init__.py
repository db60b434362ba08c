"""Evidence packs: one signed file that ties what an audit found to the very files of the model it was found on."""
