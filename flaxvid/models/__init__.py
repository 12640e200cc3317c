"""The zoo: one file a family. `Common` and the family's `build` say what each option means, and no other place does."""
