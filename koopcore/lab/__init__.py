"""The laboratory beside the library: problems, experiments of papers, studies that measure."""
