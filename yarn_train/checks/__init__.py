"""What is looked at before a run starts: options, machine, model, data and run folder, one list of problems."""
