"""What a run leaves beside its video, and how a later run resumes or edits it.

folder        NAME.run: record, settings, events, lock     parts        tensors of all frames, one file per rank
paths         the files that a run reads and writes        checkpoints  when to write one, and what to resume from
start         whether a run starts, resumes or is done     earlier      the run that a redo or extend starts from
sources       the video or pictures a run starts from      first_pass   the first of two passes, a run of its own
settings      the settings that a run started with         derived      settings of resume, decode, redo and extend
files_record  the settings that its files were made with   together     folders of parts, written by all ranks
"""
