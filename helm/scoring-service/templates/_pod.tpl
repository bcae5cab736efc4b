{{/* Where things are in the container. What the server writes goes to `cache` and `tmp`; `models` holds weights. */}}
{{- define "scoring-service.environment" -}}
- name: HOME
  value: /tmp
- name: TMPDIR
  value: /tmp
# Compiled kernels: those of the CPU, of Triton and of torch.
- name: XDG_CACHE_HOME
  value: /var/cache/scoring-service
- name: TRITON_CACHE_DIR
  value: /var/cache/scoring-service/triton
- name: TORCHINDUCTOR_CACHE_DIR
  value: /var/cache/scoring-service/inductor
# Weights, and Python code of models that bring some.
- name: HF_HOME
  value: /models/huggingface
- name: HF_MODULES_CACHE
  value: /var/cache/scoring-service/modules
- name: HF_HUB_DISABLE_TELEMETRY
  value: "1"
{{- end -}}

{{/* What reaches the Hub: the container that downloads, else the server. */}}
{{- define "scoring-service.hub" -}}
{{- with .root.Values.hub.endpoint }}
- name: HF_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- if or .root.Values.hub.existingSecret .root.Values.hub.token }}
- name: HF_TOKEN
  valueFrom:
    secretKeyRef:
      name: {{ include "scoring-service.hubsecret" .root | quote }}
      key: {{ .root.Values.hub.key | quote }}
{{- end }}
{{- end -}}

{{/* What the container that downloads and the server both mount. */}}
{{- define "scoring-service.mounts" -}}
- name: models
  mountPath: /models
- name: cache
  mountPath: /var/cache/scoring-service
- name: tmp
  mountPath: /tmp
{{- end -}}

{{/* What the server mounts, without what users add. */}}
{{- define "scoring-service.servermounts" -}}
{{- $values := .root.Values -}}
{{ include "scoring-service.mounts" . }}
- name: shm
  mountPath: /dev/shm
- name: settings
  mountPath: /etc/scoring-service/settings
  readOnly: true
{{- if $values.tls.enabled }}
- name: tls
  mountPath: /etc/scoring-service/tls
  readOnly: true
{{- if $values.tls.clientCa.enabled }}
- name: client-ca
  mountPath: /etc/scoring-service/client-ca
  readOnly: true
{{- end }}
{{- end }}
{{- if $values.auth.enabled }}
- name: auth
  mountPath: /etc/scoring-service/auth
  readOnly: true
{{- end }}
{{- end -}}

{{- define "scoring-service.volumes" -}}
{{- $values := .root.Values -}}
- name: settings
  configMap:
    name: {{ include "scoring-service.modelname" . }}-settings
- name: models
  {{- if .model.cache.enabled }}
  persistentVolumeClaim:
    claimName: {{ include "scoring-service.claim" . | quote }}
  {{- else }}
  emptyDir:
    {{- with .model.cache.size }}
    sizeLimit: {{ . }}
    {{- end }}
  {{- end }}
- name: cache
  emptyDir:
    sizeLimit: {{ .model.scratchSize }}
- name: tmp
  emptyDir:
    sizeLimit: {{ .model.scratchSize }}
- name: shm
  emptyDir:
    medium: Memory
    sizeLimit: {{ .model.sharedMemory }}
{{- if $values.tls.enabled }}
# Folders, not single files: those would not follow a Secret that is rotated.
- name: tls
  secret:
    secretName: {{ include "scoring-service.tlssecret" .root | quote }}
    defaultMode: 288 # 0440; not every reader of YAML takes that for octal
    items:
      - {key: tls.crt, path: tls.crt}
      - {key: tls.key, path: tls.key}
{{- if $values.tls.clientCa.enabled }}
- name: client-ca
  secret:
    secretName: {{ include "scoring-service.casecret" .root | quote }}
    defaultMode: 288 # 0440; not every reader of YAML takes that for octal
    items:
      - {key: ca.crt, path: ca.crt}
{{- end }}
{{- end }}
{{- if $values.auth.enabled }}
- name: auth
  secret:
    secretName: {{ include "scoring-service.tokensecret" .root | quote }}
    defaultMode: 288 # 0440; not every reader of YAML takes that for octal
    items:
      - {key: {{ $values.auth.key | quote }}, path: tokens}
{{- end }}
{{- with .model.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* requests and limits, with the GPUs among both: Kubernetes wants them equal. */}}
{{- define "scoring-service.resources" -}}
{{- $resources := deepCopy .model.resources -}}
{{- if gt (int .model.gpus) 0 -}}
{{- $gpus := dict .model.gpuResource (int .model.gpus) -}}
{{- $_ := set $resources "limits" (merge (dict) $gpus ($resources.limits | default dict)) -}}
{{- $_ := set $resources "requests" (merge (dict) $gpus ($resources.requests | default dict)) -}}
{{- end -}}
{{- toYaml $resources -}}
{{- end -}}

{{/* Constraints of topology that name no pods mean those of their own model and revision. */}}
{{- define "scoring-service.spread" -}}
{{- $selector := include "scoring-service.modelselector" . | fromYaml -}}
{{- $found := list -}}
{{- range .model.topologySpreadConstraints -}}
{{- $constraint := deepCopy . -}}
{{- if not (hasKey $constraint "labelSelector") -}}
{{- $_ := set $constraint "labelSelector" (dict "matchLabels" $selector) -}}
{{- if not (hasKey $constraint "matchLabelKeys") -}}
{{- $_ := set $constraint "matchLabelKeys" (list "pod-template-hash") -}}
{{- end -}}
{{- end -}}
{{- $found = append $found $constraint -}}
{{- end -}}
{{- toYaml $found -}}
{{- end -}}
