{{- define "tidelog.name" -}}
{{- $name := .Release.Name -}}
{{- if not (contains .Chart.Name $name) }}{{ $name = printf "%s-%s" $name .Chart.Name }}{{ end -}}
{{- $name | trunc 30 | trimSuffix "-" -}}
{{- end -}}

{{- define "tidelog.selector" -}}
app.kubernetes.io/name: {{ .Chart.Name }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "tidelog.labels" -}}
{{ include "tidelog.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end -}}

{{- define "tidelog.serviceAccount" -}}
{{- if .Values.serviceAccount.create -}}
{{ .Values.serviceAccount.name | default (include "tidelog.name" .) }}
{{- else -}}
{{ .Values.serviceAccount.name | default "default" }}
{{- end -}}
{{- end -}}

{{/* The WAL of each broker: on its volume, or in the bucket beside the objects, told apart by node.id. */}}
{{- define "tidelog.wal" -}}
{{- if eq .Values.wal.kind "volume" -}}
file:///var/lib/tidelog/wal?capacity={{ .Values.wal.volume.capacity }}
{{- else -}}
{{- $uri := .Values.wal.bucket.uri | default .Values.objectStore.uri -}}
{{ $uri }}{{ ternary "&" "?" (contains "?" $uri) }}batch_interval_ms={{ .Values.wal.bucket.batchIntervalMs }}
{{- end -}}
{{- end -}}
