"""Several nodes on one machine by one command (`--nodes N`): what each is given, its process, and who keeps all of them running."""
