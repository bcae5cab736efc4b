{{/*
CPU cores of a model's container, in thousandths: its limit, else its request; 0 where neither is set.
*/}}
{{- define "scoring-service.millicores" -}}
{{- $resources := .model.resources | default dict -}}
{{- $limit := dig "cpu" "" ($resources.limits | default dict) -}}
{{- include "scoring-service.thousandths" ($limit | default (dig "cpu" "" ($resources.requests | default dict))) -}}
{{- end -}}

{{/* A quantity of cores in thousandths; 0 where there is none. */}}
{{- define "scoring-service.thousandths" -}}
{{- $cpu := toString . -}}
{{- if not $cpu -}}
0
{{- else if hasSuffix "m" $cpu -}}
{{- trimSuffix "m" $cpu | int -}}
{{- else -}}
{{- mulf (float64 $cpu) 1000 | int -}}
{{- end -}}
{{- end -}}

{{/* A quantity of memory in MiB; -1 where there is none, or in a unit that nobody uses for memory. */}}
{{- define "scoring-service.mebibytes" -}}
{{- $quantity := toString . -}}
{{- $number := regexFind "^[0-9]+([.][0-9]+)?([eE][+]?[0-9]+)?" $quantity -}}
{{- $unit := trimPrefix $number $quantity -}}
{{- $factors := dict "" 9.5367431640625e-07 "k" 0.00095367431640625 "Ki" 0.0009765625 "M" 0.95367431640625 "Mi" 1.0 "G" 953.67431640625 "Gi" 1024.0 "T" 953674.31640625 "Ti" 1048576.0 -}}
{{- if and $number (hasKey $factors $unit) -}}
{{- mulf (float64 $number) (get $factors $unit) | int -}}
{{- else -}}
-1
{{- end -}}
{{- end -}}

{{/*
The settings file of a model, as `scoring-service serve --config` reads it. What the chart decides stands here;
the schema refuses it under `settings`.
*/}}
{{- define "scoring-service.settings" -}}
{{- $values := .root.Values -}}
{{- $model := .model -}}
{{- /* All addresses: gRPC takes it for those of IPv6 too, and so do the metrics. */ -}}
{{- $file := dict
      "host" "0.0.0.0"
      "port" 50051
      "health_port" 50052
      "metrics_port" 9464
      "served_model_name" ($model.servedName | default $model.name)
      "drain_seconds" $model.drainSeconds
      "log_format" "json" -}}
{{- if and $model.liveWeights.enabled $model.liveWeights.await -}}{{- $_ := set $file "await_weights" true -}}{{- end -}}
{{- with $model.revision -}}{{- $_ := set $file "revision" (toString .) -}}{{- end -}}
{{- with $model.workers -}}{{- $_ := set $file "num_workers" . -}}{{- end -}}
{{- if gt (int $model.gpus) 0 -}}
{{- /* Not what the server finds: a pod that got fewer than it asked for should fail, not be slow. */ -}}
{{- $_ := set $file "num_workers" ($model.workers | default $model.gpus) -}}
{{- /* Not auto: where the driver is missing, a pod that computes on its CPU would go unnoticed. */ -}}
{{- $_ := set $file "device" "cuda" -}}
{{- else -}}
{{- $_ := set $file "device" "cpu" -}}
{{- end -}}
{{- /* torch would take a thread for every core of the node; and bits depend on their number. */ -}}
{{- $millicores := include "scoring-service.millicores" . | int -}}
{{- if $millicores -}}
{{- $_ := set $file "threads" (max 1 (div $millicores (mul 1000 (max 1 (int ($model.workers | default $model.gpus)))))) -}}
{{- end -}}
{{- if $values.tls.enabled -}}
{{- $_ := set $file "tls_certificate" "/etc/scoring-service/tls/tls.crt" -}}
{{- $_ := set $file "tls_key" "/etc/scoring-service/tls/tls.key" -}}
{{- if $values.tls.clientCa.enabled -}}
{{- $_ := set $file "tls_client_ca" "/etc/scoring-service/client-ca/ca.crt" -}}
{{- end -}}
{{- end -}}
{{- if $values.auth.enabled -}}
{{- $_ := set $file "auth_tokens" "/etc/scoring-service/auth/tokens" -}}
{{- end -}}
{{- if $values.allowInsecure -}}{{- $_ := set $file "allow_insecure" true -}}{{- end -}}
{{- /* null is what the server does where nothing is set, whatever the defaults or the chart would have set. */ -}}
{{- range $name, $setting := $model.settings -}}
{{- if kindIs "invalid" $setting -}}{{- $file = unset $file $name -}}{{- else -}}{{- $_ := set $file $name $setting -}}{{- end -}}
{{- end -}}
{{- toYaml $file -}}
{{- end -}}

{{/* Seconds that kubelet waits from the start of preStop before it kills. */}}
{{- define "scoring-service.graceperiod" -}}
{{- $least := add (int .model.preStopSeconds) (int .model.drainSeconds) 10 -}}
{{- .model.terminationGracePeriodSeconds | default (add $least 5) | int -}}
{{- end -}}
