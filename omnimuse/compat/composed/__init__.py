"""Pipelines that are composed as SGLang Diffusion's guide has it, as models of ours (docs/compat.md).

Their files import `compat/sglang`, where the guide's names are; here is what makes a spec and a pipeline of such a
package: `discover.py` reads what it has without importing it, `spec.py` says what it can be asked for, `make.py` reads
the weights and composes it, `stages.py` has its stages as ours, `requests.py` its words for a request.
"""
