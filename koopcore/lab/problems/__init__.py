"""Problems of the literature that show the engine at work; each module needs torch."""
