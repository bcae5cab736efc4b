{{/* The chart's name, or what overrides it. */}}
{{- define "scoring-service.name" -}}
{{- .Values.nameOverride | default .Chart.Name | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{/* Name of the release's objects: the release's name, which holds the chart's or gets it appended. */}}
{{- define "scoring-service.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "scoring-service.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "scoring-service.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Name of a model's objects. Takes a dict of root and model. */}}
{{- define "scoring-service.modelname" -}}
{{- printf "%s-%s" (include "scoring-service.fullname" .root) .model.name -}}
{{- end -}}

{{/* Name of a model's headless Service. */}}
{{- define "scoring-service.headless" -}}
{{- printf "%s-headless" (include "scoring-service.modelname" .) -}}
{{- end -}}

{{/* Name of the headless Service with all of a model's pods, for pushes. */}}
{{- define "scoring-service.replicas" -}}
{{- printf "%s-replicas" (include "scoring-service.modelname" .) -}}
{{- end -}}

{{/* The annotation that links an alert to its place on the operators' page. Takes the root and the alert's name. */}}
{{- define "scoring-service.runbook" -}}
{{- with (index . 0).Values.metrics.prometheusRule.runbookUrl -}}
runbook_url: {{ printf "%s#%s" . (index $ 1 | lower) | quote }}
{{- end -}}
{{- end -}}

{{- define "scoring-service.serviceaccount" -}}
{{- if .Values.serviceAccount.create -}}
{{- .Values.serviceAccount.name | default (include "scoring-service.fullname" .) -}}
{{- else -}}
{{- .Values.serviceAccount.name | default "default" -}}
{{- end -}}
{{- end -}}

{{/* Labels of every object. */}}
{{- define "scoring-service.labels" -}}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{ include "scoring-service.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
{{- with .Values.commonLabels }}
{{ toYaml . }}
{{- end }}
{{- end -}}

{{/* Labels that find the release's objects; they can never change, because a Deployment's cannot. */}}
{{- define "scoring-service.selector" -}}
app.kubernetes.io/name: {{ include "scoring-service.name" . | quote }}
app.kubernetes.io/instance: {{ .Release.Name | quote }}
{{- end -}}

{{/* Labels of a model's objects. */}}
{{- define "scoring-service.modellabels" -}}
{{ include "scoring-service.labels" .root }}
app.kubernetes.io/component: server
scoring-service/model: {{ .model.name | quote }}
{{- end -}}

{{/* Labels that find a model's pods. */}}
{{- define "scoring-service.modelselector" -}}
{{ include "scoring-service.selector" .root }}
app.kubernetes.io/component: server
scoring-service/model: {{ .model.name | quote }}
{{- end -}}

{{/* What the Services say that the pods speak. */}}
{{- define "scoring-service.appprotocol" -}}
{{- .Values.service.appProtocol | default (ternary "" "kubernetes.io/h2c" .Values.tls.enabled) -}}
{{- end -}}

{{/* The image of a model: with CUDA where it asks for GPUs. */}}
{{- define "scoring-service.image" -}}
{{- $image := .root.Values.image -}}
{{- $variant := ternary "cuda" "cpu" (gt (int .model.gpus) 0) -}}
{{- $tag := $image.tag | default (printf "%s-%s" .root.Chart.AppVersion $variant) -}}
{{- if $image.digest -}}
{{- printf "%s@%s" $image.repository $image.digest -}}
{{- else -}}
{{- printf "%s:%s" $image.repository $tag -}}
{{- end -}}
{{- end -}}

{{/* Name of the Secret with the server's certificate and key. */}}
{{- define "scoring-service.tlssecret" -}}
{{- .Values.tls.existingSecret | default (printf "%s-tls" (include "scoring-service.fullname" .)) -}}
{{- end -}}

{{/*
Where `helm test` finds the authority that signed the server's certificate: a Secret and its key, as YAML; nothing
where nobody said. The ca.crt of the chart's own Secret is not asked: it holds the authorities of clients.
*/}}
{{- define "scoring-service.serverca" -}}
{{- $test := .Values.test -}}
{{- if or $test.serverCaSecret .Values.tls.existingSecret -}}
{secret: {{ $test.serverCaSecret | default .Values.tls.existingSecret | quote }}, key: {{ $test.serverCaKey | quote }}}
{{- else if .Values.tls.serverCa -}}
{secret: {{ include "scoring-service.tlssecret" . }}, key: server-ca.crt}
{{- else if eq $test.serverCaKey "tls.crt" -}}
{secret: {{ include "scoring-service.tlssecret" . }}, key: tls.crt}
{{- end -}}
{{- end -}}

{{/* What `helm test` lacks to be let in, for people; nothing where it may call. */}}
{{- define "scoring-service.testlacks" -}}
{{- $tls := .Values.tls -}}
{{- $lacks := list -}}
{{- if and .Values.auth.enabled (not .Values.test.tokenSecret.name) -}}{{- $lacks = append $lacks "test.tokenSecret" -}}{{- end -}}
{{- if and $tls.enabled $tls.clientCa.enabled (not .Values.test.clientCertificateSecret) -}}{{- $lacks = append $lacks "test.clientCertificateSecret" -}}{{- end -}}
{{- if and $tls.enabled (not (include "scoring-service.serverca" .)) -}}{{- $lacks = append $lacks "tls.serverCa" -}}{{- end -}}
{{- join " and " $lacks -}}
{{- end -}}

{{/* Name of the Secret with the authorities of clients. */}}
{{- define "scoring-service.casecret" -}}
{{- .Values.tls.clientCa.existingSecret | default (include "scoring-service.tlssecret" .) -}}
{{- end -}}

{{- define "scoring-service.tokensecret" -}}
{{- .Values.auth.existingSecret | default (printf "%s-tokens" (include "scoring-service.fullname" .)) -}}
{{- end -}}

{{- define "scoring-service.hubsecret" -}}
{{- .Values.hub.existingSecret | default (printf "%s-hub" (include "scoring-service.fullname" .)) -}}
{{- end -}}

{{/* Whether a model's only pod has a claim that a second one might not be able to mount beside it. */}}
{{- define "scoring-service.ofonenode" -}}
{{- $modes := .model.cache.accessModes -}}
{{- $many := or (gt (int .model.replicas) 1) .model.autoscaling.enabled -}}
{{- if and .model.cache.enabled (not $many) (not (has "ReadWriteMany" $modes)) (without $modes "ReadOnlyMany") -}}
true
{{- end -}}
{{- end -}}

{{/* Name of the claim that holds a model's weights. */}}
{{- define "scoring-service.claim" -}}
{{- .model.cache.existingClaim | default (printf "%s-cache" (include "scoring-service.modelname" .)) -}}
{{- end -}}
