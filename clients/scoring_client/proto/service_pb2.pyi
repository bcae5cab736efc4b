from scoring_client.proto import model_info_pb2 as _model_info_pb2
from scoring_client.proto import sample_pb2 as _sample_pb2
from scoring_client.proto import score_pb2 as _score_pb2
from scoring_client.proto import tokenize_pb2 as _tokenize_pb2
from scoring_client.proto import topk_pb2 as _topk_pb2
from google.protobuf import descriptor as _descriptor
from typing import ClassVar as _ClassVar

DESCRIPTOR: _descriptor.FileDescriptor
