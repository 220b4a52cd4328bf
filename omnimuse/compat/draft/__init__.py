"""The first draft of a family: what a checkpoint or a pipeline class of diffusers tells, as files to go on with."""
