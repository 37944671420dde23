//! An Ollama that comes back; paths and methods that Ollama doesn't have.
